"""Inversion of a teacher into synthetic images."""
