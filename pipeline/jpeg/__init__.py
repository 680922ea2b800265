"""JPEG files → Coefficients."""
