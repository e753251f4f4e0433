"""What goes into a release besides our own code: licences, pins, bill of materials, the wheel.

Run from the checkout by the Makefile; not in the wheel, and imported by nothing.
"""
