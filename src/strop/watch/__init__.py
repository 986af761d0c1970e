"""What a person sees of a run: progress, alarms, samples, the run directory."""
