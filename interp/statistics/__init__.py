"""Statistics: intervals and tests that every room shares. They know no model."""
