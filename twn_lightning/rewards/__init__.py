"""What a rollout earns: named parts, each ``(P, G)`` for G rollouts of P prompts, and their weighted sum."""
