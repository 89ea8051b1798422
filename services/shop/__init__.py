"""What several services of the shop know: its goods, money, instants, and the bounds of an order.

None of them may import another. What they share, and only the shop needs, is here.
"""
