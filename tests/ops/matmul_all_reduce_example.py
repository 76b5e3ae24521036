import torch

import fastserve.ops
from fastserve.distributed.group import init_group

group = init_group()  # every process that torchrun started
torch.manual_seed(0)
x, w = torch.randn(8, 576), torch.randn(1536, 576)
columns = torch.arange(576).chunk(group.size)[group.rank]  # this rank's share of K
y = fastserve.ops.matmul_all_reduce(x[:, columns], w[:, columns], group=group)
torch.testing.assert_close(y, x @ w.T, rtol=1e-4, atol=1e-4)
print(f"rank {group.rank} of {group.size}: equal to torch")
