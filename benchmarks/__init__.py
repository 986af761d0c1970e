"""Side by side measurements. Nothing here is a test: timings depend on the machine, so ratios of one run are
reported."""
