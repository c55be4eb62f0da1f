"""Chatwright: exact, fast and clear supervised fine-tuning."""

__version__ = "0.1.0"
