"""Devices that drift: what is drawn, the courses of people and street sensors, and the outcome."""
