"""The `Provider` port's answers: everything that holds a key, alike for the ceremonies above."""
