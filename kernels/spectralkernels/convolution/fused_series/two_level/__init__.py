"""Series whose circle splits into two digits: two small products with a turn in between."""
