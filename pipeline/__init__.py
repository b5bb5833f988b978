"""Data-free knowledge distillation: invert a teacher into images, distil a student from them, evaluate it."""
