"""What is minimised: float32 arithmetic on tensors, without models, ranks or data sets."""
