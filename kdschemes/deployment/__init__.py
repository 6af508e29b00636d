"""What a finished run is used for: evaluation, prediction, export, measurement, publication."""
