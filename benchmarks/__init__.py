"""Speed against other libraries at equal accuracy, in turns in one run; `make bench` prints the tables."""
