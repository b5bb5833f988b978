"""Training of a student on a teacher's outputs."""
