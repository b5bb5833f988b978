"""Data-free knowledge distillation: invert a teacher into images, distill a student from them, evaluate it."""
