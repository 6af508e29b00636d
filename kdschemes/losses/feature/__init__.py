"""Losses between the features of one stage of the student and one of the teacher."""
