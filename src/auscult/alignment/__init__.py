"""The two-stage detector of replicas: which references deserve a closer look, how surely they are replayed, and where.

candidates  exhaustive correlation on a coarse clock
parts       what a pair reaches under hypotheses of tempo and pitch, as a whole and in its best stretch
scoring     the parts, standardized by what the same query reaches on background sound, as one number
spans       where: matching stretches in seconds on both sides, tempo and pitch
"""
