"""Rows of arrays answered by a model.

models         the models of a job, and how many segments one answers at once
answers        rows and outputs of the model as a table
drift          what rows look like, and the drift of a whole job
"""
