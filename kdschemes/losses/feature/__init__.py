"""Losses between the features of a student stage and a teacher stage."""
