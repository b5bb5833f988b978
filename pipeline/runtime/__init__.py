"""What everything runs on: configuration, files, ranks, threads, compiler, seeds."""
