"""What the shells for asyncio and for threads share: threads and locks, forks, and what an incoming call hands on."""
