"""The noun: Transform, how it is written for one weight, and how it is combined and named."""
