"""Training images: their index, decoding, random crops."""
