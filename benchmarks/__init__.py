"""Speed ratios against other libraries, measured interleaved in one run; `make bench` prints them."""
