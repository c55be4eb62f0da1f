"""Makes this folder importable for the tests below it: `from shared_files import shared`."""
