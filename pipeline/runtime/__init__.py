"""Configuration, files, processes, threads, compiler and seeds, for all other folders."""
