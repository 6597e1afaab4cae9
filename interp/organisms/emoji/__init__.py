"""The emoji organism."""
