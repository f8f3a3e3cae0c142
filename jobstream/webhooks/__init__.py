"""Webhooks: who is told of the end of jobs, what is said, and the book of all deliveries. Workers deliver it."""
