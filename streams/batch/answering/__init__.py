"""Rows of arrays answered by a model.

models         the models of a job
answers        rows and outputs of the model as a table
batching       how many segments the model answers at once
watching       what rows look like, for drift and accuracy
drift          the drift of a whole job
"""
