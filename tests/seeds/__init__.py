"""Every program of the documents that the project comes from, in our own words, as tests on the three targets."""
