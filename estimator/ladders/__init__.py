"""Runs at several budgets: reading a gain off two ladders, forecasting it, scaling laws, own runs as evidence."""
