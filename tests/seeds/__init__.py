"""Every program of the documents that the project comes from, in our own words, on the three targets."""
