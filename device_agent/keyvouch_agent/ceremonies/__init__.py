"""The two ceremonies of a device: registration and sign-in. Pure order; what they touch is handed in."""
