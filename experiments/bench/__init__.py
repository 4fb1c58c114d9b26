"""What the encoder and the training steps cost, measured against what they replace."""
