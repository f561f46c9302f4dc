"""What runs scored and cost, and which differences are real."""
