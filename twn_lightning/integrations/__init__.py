"""Trained bundles inside other people's libraries: each module needs its library, and nothing else imports it."""
