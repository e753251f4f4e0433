"""Attacks on our own training, to measure what its protections are worth.

`inversion` reconstructs training images from a site's update (Geiping et al. 2020); `audit`
bounds the privacy loss of the private step from below in one run (Steinke, Nasr, Jagielski 2023).
Run them with `python -m training.attack` or `radiopaque attack`.
"""
