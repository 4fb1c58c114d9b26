"""What is reported: ranking and gate figures, tensors in and tensors out."""
