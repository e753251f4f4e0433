"""``radiopaque doctor``: what can be checked of a deployment where it stands.

Each module looks at one part and yields findings. Nothing is changed, no session is used and no
lock is taken: a party may serve meanwhile.
"""
