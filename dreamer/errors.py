"""What is the user's to mend."""


class UserMistake(ValueError):
    """One sentence for the user: what was given, what is allowed, what to do. Never needs a stack trace."""
