"""`loraq doctor`: looks at everything that loraq leans on, and says what to do where it is not as it must be."""
