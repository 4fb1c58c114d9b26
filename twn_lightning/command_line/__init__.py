"""The command `twn`: what people do with a trained bundle, without writing Python."""
