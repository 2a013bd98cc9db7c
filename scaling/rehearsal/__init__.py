"""The drill behind `python -m scaling.rehearse`: a run that is killed again and again, held against
one that never was."""
