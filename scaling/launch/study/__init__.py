"""Many runs under one driver."""
