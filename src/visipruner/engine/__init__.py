"""The engine: removes visual rows inside a stock model. It never knows a method's or a family's name."""
