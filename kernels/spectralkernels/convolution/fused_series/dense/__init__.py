"""Short series, and circles that split into no two digits: one matrix from positions to kept frequencies."""
