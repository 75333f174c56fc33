"""What the examples have in common: command lines, pictures, the digits, batches.

Nothing here is about refax; how a model is built, trained and evaluated stands in each example.
"""
