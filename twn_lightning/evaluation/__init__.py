"""Loops over inputs without training: encode once, rank, compare the think modes, label the gate's examples, report. Needs no Trainer."""
