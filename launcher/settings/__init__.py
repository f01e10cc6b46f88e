"""A job's settings: options, their origins, and the spec that they make."""
