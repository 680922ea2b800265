"""From a file to its image: the Restorer, and the schedule that runs many files through it."""
