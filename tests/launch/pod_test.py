"""Plans and manifests: what a slice is, what fits on it, and what starts a run on it."""

import doctest
import json
import os
import pathlib
import stat
import subprocess
import sys
import tempfile

import jax
import pytest
from absl.testing import absltest
from absl.testing import parameterized

import jaxsparse as jsp
from experiments import language
from launch.pods import aot
from launch.pods import forecast
from launch.pods import manifests
from launch.pods import topology
from launch.runs import loop
from launch.runs import overlay

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_GOLDEN = pathlib.Path(__file__).with_name('first.jobset.yaml')
_FLAT = topology.parse('v5e:16x16')

# What must not be taken for anything but text, wherever it stands.
_HOSTILE = (
  'x; touch pwned',
  'x && touch pwned',
  '$(touch pwned)',
  '`touch pwned`',
  "x' ; touch pwned ; '",
  'x" ; touch pwned ; "',
  'x | tee pwned',
  'x > pwned',
  'x\ntouch pwned',
  'x\r\nkind: Pod',
  '!!python/object/apply:os.system ["touch pwned"]',
  '&anchor *anchor',
  'x: y # z',
  '- x',
  '{x: y}',
  '../../etc/passwd',
  '/etc/passwd\0',
  '-x',
  '--flagfile=/etc/passwd',
  '<script>alert(1)</script>',
  '${HOME}',
  '%s%n',
  'é\u2028x',
  '~/x',
  '',
)


def job(**fields):
  """A job that can be written; `fields` replace."""
  given = dict(name='first', where=_FLAT, image='registry/run:1', bucket='runs-1')
  return manifests.Job(**{**given, **fields})


def vm(**fields):
  """A job for a TPU VM."""
  return job(**{'bucket': None, 'workdir': '/shared/first', **fields})


def run(*words, **environment):
  """Starts `launch.pod` with these words."""
  return subprocess.run(
    [sys.executable, '-m', 'launch.pod', *words],
    cwd=_ROOT,
    env={**os.environ, 'XLA_FLAGS': '', **environment},  # libtpu refuses flags of CPUs
    capture_output=True,
    text=True,
    timeout=1200,
    check=False,
  )


class TopologyTest(parameterized.TestCase):
  @parameterized.parameters(
    ('v5e:16x16', 256, 256, 64, 'tpu-v5-lite-podslice'),
    ('v5e:1x1', 1, 1, 1, 'tpu-v5-lite-podslice'),
    ('v6e:2x4', 8, 8, 2, 'tpu-v6e-slice'),
    ('v5p:4x4x4', 64, 64, 16, 'tpu-v5p-slice'),
    ('v5p:8x12x16', 1536, 1536, 384, 'tpu-v5p-slice'),
    ('v4:2x2x1', 4, 4, 1, 'tpu-v4-podslice'),
    ('tpu7x:4x4x4', 64, 128, 16, 'tpu7x'),
  )
  def test_a_slice_is_read(self, text, chips, devices, hosts, label):
    found = topology.parse(text)
    self.assertEqual((found.chips, found.devices, found.hosts()), (chips, devices, hosts))
    self.assertEqual((found.name, found.chip.label), (text, label))

  @parameterized.parameters(
    ('v9:2x2', 'generations are v4, v5e, v5p, v6e, tpu7x'),
    ('v5e', 'slices of v5e are 1x1, 2x2, 2x4'),
    ('v5e:3x3', 'slices of v5e are 1x1, 2x2, 2x4'),
    ('v5e:4x4x4', 'slices of v5e are'),
    ('v5p:4x4', 'slices of v5p are 2x2x1.*ascending multiples of 4 up to 6144'),
    ('v5p:8x4x4', 'slices of v5p are'),
    ('v5p:16x16x28', 'slices of v5p are'),
    ('v5p:4x4x0', 'slices of v5p are'),
    ('', 'expected generation:sides'),
  )
  def test_any_other_lists_those_there_are(self, text, message):
    with self.assertRaisesRegex(ValueError, message):
      topology.parse(text)

  def test_machines_have_the_chips_they_have(self):
    self.assertEqual(topology.parse('v5e:2x4').hosts(8), 1)
    with self.assertRaisesRegex(ValueError, 'A machine of a v5p:4x4x4 slice has 4 chips, got 8'):
      topology.parse('v5p:4x4x4').hosts(8)


class ManifestTest(parameterized.TestCase):
  def test_the_jobset_is_the_golden_one(self):
    words = ('--experiment=language', '--size=1b', "--transform=fake_quantize('int8') # ${x}")
    self.assertEqual(manifests.jobset(job(words=words)), _GOLDEN.read_text(encoding='utf-8'))

  def test_the_gcloud_command_is_the_golden_one(self):
    words = ('--experiment=language', '--transform=nm(2, 4)')
    line = manifests.gcloud(vm(words=words, zone='us-west4-a')).splitlines()[-1]
    self.assertEqual(
      line,
      'gcloud compute tpus tpu-vm ssh first --zone=us-west4-a --worker=all '
      "'--command=sudo docker run --rm --stop-timeout=60 --privileged --net=host "
      '--volume=/shared/first:/shared/first registry/run:1 python -m launch.supervise '
      '--workdir=/shared/first --grace=55 --distributed=on -- --experiment=language '
      "'\"'\"'--transform=nm(2, 4)'\"'\"''",
    )

  def test_yaml_reads_back_what_was_meant(self):
    yaml = pytest.importorskip('yaml')
    words = tuple(f'--set=x={text}' for text in _HOSTILE if text.isascii() and text.isprintable())
    made = yaml.safe_load(manifests.jobset(job(words=words, claim='runs', bucket=None)))
    self.assertEqual((made['kind'], made['metadata']['name']), ('JobSet', 'first'))
    (template,) = [r['template']['spec'] for r in made['spec']['replicatedJobs']]
    self.assertEqual((template['parallelism'], template['completions']), (64, 64))
    pod = template['template']['spec']
    self.assertEqual(
      pod['nodeSelector'],
      {
        'cloud.google.com/gke-tpu-accelerator': 'tpu-v5-lite-podslice',
        'cloud.google.com/gke-tpu-topology': '16x16',
      },
    )
    self.assertGreaterEqual(pod['terminationGracePeriodSeconds'], 30)
    (container,) = pod['containers']
    self.assertEqual(container['resources']['limits'], {'google.com/tpu': 4})
    # Kubernetes itself turns $$ into $.
    self.assertEqual([w.replace('$$', '$') for w in container['command'][-len(words) :]], [*words])
    rules = {r['action']: r['onExitCodes']['values'] for r in template['podFailurePolicy']['rules']}
    self.assertEqual(rules, {'FailJob': [1, 2, 44, 74], 'Count': [42, 43, 75]})

  def test_a_shell_hands_every_word_on_as_it_is(self):
    with tempfile.TemporaryDirectory() as folder:
      # A gcloud that does what the real one does on each machine: gives the command to a shell.
      fakes = {
        'gcloud': 'for word; do case $word in --command=*) sh -c "${word#--command=}";; esac; done',
        'sudo': 'printf "%s\\0" "$@"',
      }
      for name, body in fakes.items():
        path = pathlib.Path(folder, name)
        path.write_text(f'#!/bin/sh\n{body}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
      words = tuple(f'--set=x={text}' for text in _HOSTILE if text.isascii() and text.isprintable())
      said = subprocess.run(
        ['sh', '-c', manifests.gcloud(vm(words=words))],
        cwd=folder,
        env={'PATH': f'{folder}:{os.environ["PATH"]}'},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
      )
      self.assertEqual(said.stdout.split('\0')[-len(words) - 1 : -1], [*words])
      self.assertCountEqual(os.listdir(folder), fakes)

  @parameterized.product(
    field=('name', 'image', 'checkout', 'workdir', 'bucket', 'claim', 'zone', 'project'),
    text=_HOSTILE,
  )
  def test_no_name_or_path_means_more_than_it_says(self, field, text):
    with self.assertRaisesRegex(ValueError, f'--{field}: expected'):
      job(**{field: text})

  @parameterized.parameters(
    'stray',
    '-x',
    '--x y',
    '--X=1',
    '--flagfile=/etc/passwd',
    '--noflagfile',
    '--fromenv=HOME',
    '--workdir=/etc',
    '--distributed=off',
    '--set=x\ny',
    '--set=é',
    '--set=' + 'x' * 20_000,
  )
  def test_only_flags_of_the_run_are_handed_on(self, word):
    with self.assertRaisesRegex(ValueError, 'got|may not be given'):
      job(words=(word,))

  @parameterized.parameters(
    (manifests.jobset, dict(image=None), '--image is missing'),
    (manifests.jobset, dict(bucket=None), '--bucket or --claim'),
    (manifests.jobset, dict(claim='x'), '--bucket or --claim'),
    (manifests.jobset, dict(workdir='/tmp/x'), 'a folder of /workdir'),
    (manifests.jobset, dict(workdir='/workdir/.'), 'a folder of /workdir'),
    (manifests.jobset, dict(zone='us-west4-a'), '--zone says nothing to a GKE JobSet'),
    (manifests.gcloud, dict(), '--bucket says nothing to a TPU VM'),
    (manifests.gcloud, dict(bucket=None), '--workdir is missing'),
    (manifests.gcloud, dict(bucket=None, workdir='/x', checkout='y'), '--image or --checkout'),
  )
  def test_what_is_missing_or_useless_is_said(self, write, fields, message):
    with self.assertRaisesRegex(ValueError, message):
      write(job(**fields))

  def test_the_supervisor_takes_the_command(self):
    words = job(words=('--experiment=language', '--size=smoke')).command('/workdir/first')
    program = (
      'import sys\nfrom absl import flags\nfrom launch import supervise\n'
      'print(supervise._problem(flags.FLAGS(sys.argv)), supervise._DISTRIBUTED.value)'
    )
    said = subprocess.run(
      [sys.executable, '-c', program, *words[3:]],
      cwd=_ROOT,
      capture_output=True,
      text=True,
      timeout=60,
      check=True,
    )
    self.assertEqual(said.stdout, ' on\n', said.stderr)
    alone = job(where=topology.parse('v5e:1x1')).command('/workdir/first')
    self.assertNotIn('--distributed=on', alone)


class FiguresTest(parameterized.TestCase):
  def program(self, **broken):
    """The smoke model with RigL's masks on eight host devices."""
    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((4, 2), ('data', 'model'), axis_types=auto)
    task = language.build(overlay.configure('language', 'smoke'))
    return loop.program(task, overlay.recipe('rigl(0.9)', task.weights), mesh)

  def test_state_is_added_up_and_what_is_replicated_is_named(self):
    program = self.program()
    roles, accidents = aot.account(program)
    self.assertEqual(accidents, [])
    self.assertEqual(roles['masks'].total, 2 * (4 * 64 * 64 + 3 * 64 * 128))
    self.assertEqual(roles['masks'].a_device, roles['masks'].total // 8)
    self.assertEqual(roles['masks'].expected, roles['masks'].total / 8)
    everywhere = jax.sharding.NamedSharding(program.mesh, jax.sharding.PartitionSpec())
    spread = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere)
    state = jax.tree.map(spread, program.like.state)
    _, accidents = aot.account(program._replace(like=program.like._replace(state=state)))
    self.assertLen(accidents, 7)
    self.assertIn('blocks/query/kernel/mask is split 1 ways, its weight 8', ' '.join(accidents))

  def test_operations_are_those_of_forward_and_backward(self):
    program = self.program()
    once = jsp.flops(program.task.apply, program.task.init(), program.task.inputs).executed
    self.assertEqual(aot.count_flops(program), 3 * 16 * once)

  def test_a_batch_that_cannot_be_split_says_both_numbers(self):
    program = self.program()
    batch = program.task.batch(0)[:6]
    program = program._replace(task=program.task._replace(batch=lambda step: batch))
    with self.assertRaisesRegex(ValueError, 'batch of 6 is not divisible by data:4'):
      aot.arguments(program)

  def test_what_does_not_fit_is_a_figure(self):
    said = 'E1000: CompileTimeHbmOom: (27.00G) exceeds available HBM (15.75G). HLO module: x.'
    self.assertEqual(aot.needed_bytes(said), 27 * 2**30)
    self.assertEqual(aot.needed_bytes('Used 27.5G of 15.75G hbm. Exceeded'), int(27.5 * 2**30))
    self.assertIsNone(aot.needed_bytes('out of memory in hbm'))
    found = aot.Compiled(None, 27 * 2**30, None, None, None, said)
    one = forecast.figures(topology.parse('v5e:2x2'), found, 4 * 10**12)
    self.assertFalse(one['fits'])
    self.assertEqual(one['flops_per_device'], 1e12)
    self.assertIn('27 GiB of 15.75 GiB: DOES NOT FIT', self.shown(one))
    none = forecast.figures(topology.parse('v5e:2x2'), found._replace(needed=None), 4)
    self.assertIn('DOES NOT FIT', self.shown(none))

  def test_the_estimate_scales_what_a_loop_hides(self):
    room = aot.Memory(arguments=8, outputs=4, aliased=3, temporaries=2, code=1)
    found = aot.Compiled(room, None, 1e12, 1e9, {'all-gather': 3}, '')
    one = forecast.figures(topology.parse('v5e:2x2'), found, 40 * 10**12)
    self.assertEqual((one['memory_total_bytes'], one['hbm_bytes_accessed']), (12, 1e10))
    self.assertAlmostEqual(one['compute_seconds'], 10e12 / 197e12)
    self.assertAlmostEqual(one['estimate_seconds'], 10e12 / 197e12)
    self.assertIn('3 all-gather (sites)', self.shown(one))
    self.assertIn('an estimate', self.shown(one))
    unprinted = found._replace(collectives=None, reason='RET_CHECK')
    one = forecast.figures(topology.parse('v5e:2x2'), unprinted, 4)
    self.assertIn('unavailable', self.shown(one))

  def shown(self, one):
    role = {'total': 8, 'a_device': 1, 'expected': 1.0, 'ratio': 1.0}
    plan = dict(mesh={'data': 4}, experiment='x', size='', transform='identity()', devices=4)
    plan |= dict(topology='v5e:2x2', parameters=1, examples=1, programs={'step': one})
    plan |= dict(state={'masks': role}, accidents=[], verdict='', cpu_seconds=1.0, versions='')
    return forecast.table(plan)

  @parameterized.parameters(aot, forecast, manifests, topology)
  def test_docstrings_are_true(self, module):
    found = doctest.testmod(module)
    self.assertGreater(found.attempted, 0)
    self.assertEqual(found.failed, 0)


# Words beside plan or render, and what the refusal says.
_REFUSED = (
  ([], 'the first word is plan or render, got nothing'),
  (['frobnicate'], "plan or render, got 'frobnicate'"),
  (['plan'], '--topology is missing'),
  (['plan', '--topology=v5e:2x4'], '--experiment is missing'),
  (['plan', '--topology=v5e:5x5', '--experiment=language'], 'slices of v5e are'),
  (['plan', '--topology=v5e:2x4', '--experiment=langauge'], 'known are'),
  (['plan', '--topology=v5e:2x4', '--experiment=language', '--size=2b'], "got '2b'"),
  (['plan', '--topology=v5e:2x4', '--experiment=language', '--set=stps=1'], 'Did you mean steps?'),
  (['plan', '--topology=v5e:2x4', '--experiment=language', '--set=seed=1'], 'a flag of its own'),
  (['plan', '--topology=v5e:2x4', '--experiment=language', 'stray'], 'plan takes flags only'),
  (['plan', '--topology=v5e:2x4', '--experiment=language', '--mesh=x:8'], 'axes data and model'),
  (
    ['plan', '--topology=v5e:2x4', '--experiment=language', '--mesh=data:16'],
    '--mesh=data:16,model:1 needs 16 devices, v5e:2x4 has 8.',
  ),
  (
    ['plan', '--topology=tpu7x:2x2x1', '--experiment=language', '--mesh=data:4'],
    'needs 4 devices, tpu7x:2x2x1 has 8 (4 chips of 2).',
  ),
  (
    ['plan', '--topology=v5e:2x4', '--experiment=language', '--json=/nowhere/x.json'],
    'there is no such folder',
  ),
  (['plan', '--nosuchflag=1'], "Unknown command line flag 'nosuchflag'"),
  (['render', '--topology=v5e:2x4', '--experiment=language'], '--name: expected'),
  (
    ['render', '--topology=v5e:2x4', '--experiment=language', '--transform=rigll(0.9)'],
    'not a known word',
  ),
  (
    ['render', '--topology=v5e:2x4', '--experiment=language', '--mesh=data:16'],
    'needs 16 devices, v5e:2x4 has 8',
  ),
  (['render', '--topology=v5e:2x4', '--experiment=language', '--grace=5'], 'grace'),
)

# One process asks for all of them: importing JAX costs more than refusing.
_ASKER = """
import json, sys
from absl import flags
from launch import pod
from launch import programs
for words in json.loads(sys.argv[1]):
  flags.FLAGS.unparse_flags()
  for flag in flags.FLAGS.flags_by_module_dict()['launch.pod']:
    flag.unparse()
  try:
    code = pod.main(programs.parse('launch.pod', ['pod', *words]))
  except SystemExit as stop:
    code = stop.code
  print(f'code {code}', file=sys.stderr)
"""


class CommandTest(parameterized.TestCase):
  def test_bad_input_is_a_sentence_and_code_two(self):
    said = subprocess.run(
      [sys.executable, '-c', _ASKER, json.dumps([words for words, _ in _REFUSED])],
      cwd=_ROOT,
      capture_output=True,
      text=True,
      timeout=300,
      check=True,
    )
    answers = said.stderr.split('code 2\n')
    self.assertLen(answers, len(_REFUSED) + 1, said.stderr)
    for (words, message), answer in zip(_REFUSED, answers):
      self.assertIn(message, answer, words)
      self.assertStartsWith(answer, 'launch.pod: ')

  def test_render_writes_what_was_asked_for(self):
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder, 'out.yaml')
      asked = ['--experiment=language', '--size=1b', '--transform=nm(2, 4)', '--seed=3']
      place = ['--topology=v5p:4x4x4', '--mesh=data:16,model:4', '--image=registry/run:1']
      more = ['--name=first', '--claim=runs', f'--output={path}', '--', '--checkpoint_every=50']
      said = run('render', *asked, *place, *more)
      self.assertEqual((said.returncode, said.stderr), (0, ''))
      text = path.read_text(encoding='utf-8')
    for word in (*asked, '--mesh=data:16,model:4', '--checkpoint_every=50', '--distributed=on'):
      self.assertIn(f'- {json.dumps(word)}\n', text)
    self.assertIn('parallelism: 16', text)


def plan(*words):
  """Plans in a process of its own; returns code, table and JSON."""
  pytest.importorskip('libtpu', reason='libtpu is not installed: pip install libtpu')
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, 'plan.json')
    said = run('plan', '--experiment=language', f'--json={path}', *words)
    found = json.loads(path.read_text(encoding='utf-8')) if path.exists() else {}
  return said.returncode, said.stdout + said.stderr, found


@pytest.mark.tpu_aot
class PlanTest(parameterized.TestCase):
  @parameterized.parameters(
    ('v5e:2x4', 'data:4,model:2'), ('v5p:2x2x2', 'data:8'), ('v6e:2x4', 'data:2,model:4')
  )
  @pytest.mark.sampled(1)
  def test_a_small_step_is_compiled_for_a_slice(self, name, mesh):
    code, text, found = plan(
      f'--topology={name}', f'--mesh={mesh}', '--size=smoke', '--transform=rigl(0.9)'
    )
    self.assertEqual(code, 0, text)
    self.assertIn(f'It fits on {name}.', text)
    one = found['programs']['step']
    self.assertTrue(one['fits'])
    # State, batch and keys of one device, in whole tiles of the chip's memory.
    state = sum(role['a_device'] for role in found['state'].values())
    self.assertBetween(one['memory_bytes']['arguments'], state, 6 * state)
    self.assertLess(one['memory_total_bytes'], 2**25)
    # 14,680,064 a sequence forward, twice that backward, 16 sequences on 8 devices.
    self.assertEqual(one['flops_per_device'], 6 * 14_680_064)
    self.assertBetween(one['flops_by_xla'], 3e7, 2e8)
    self.assertGreater(one['bytes_accessed_by_xla'], one['memory_bytes']['arguments'])
    self.assertGreater(one['estimate_seconds'], 0)
    if one['collectives'] != 'unavailable':
      self.assertGreater(one['collectives']['all-gather'], 0)
    masks = found['state']['masks']
    self.assertEqual(masks['a_device'] * 8, masks['total'])
    self.assertEqual(found['accidents'], [])

  def test_what_does_not_fit_is_said_and_is_code_one(self):
    too_much = 'sequence=8192, batch_size=64'
    code, text, found = plan('--topology=v5e:1x1', '--size=smoke', f'--set={too_much}')
    self.assertEqual(code, 1, text)
    self.assertIn('DOES NOT FIT', text)
    self.assertNotIn('Traceback', text)
    one = found['programs']['step']
    self.assertGreater(one['memory_total_bytes'], one['hbm_bytes'])
    self.assertFalse(found['fits'])

  def test_an_axis_that_does_not_divide_names_the_parameter(self):
    code, text, _ = plan('--topology=v5e:4x4', '--mesh=data:1,model:16', '--size=smoke')
    self.assertEqual(code, 2, text)
    self.assertRegex(text, 'blocks/key/kernel: axis 2 .* is not divisible by 16')


@pytest.mark.slow
@pytest.mark.tpu_aot
class BillionTest(parameterized.TestCase):
  @parameterized.parameters(('v5e:16x16', 'data:16,model:16'), ('v5p:4x4x4', 'data:16,model:4'))
  def test_a_billion_weights_with_masks(self, name, mesh):
    code, text, found = plan(
      f'--topology={name}', f'--mesh={mesh}', '--size=1b', '--transform=rigl(0.9)'
    )
    print(text)
    self.assertEqual(code, 0, text)
    self.assertLess(found['cpu_seconds'], 150)
    self.assertEqual(found['parameters'], 1_055_991_808)
    self.assertEqual(found['state']['masks']['total'], 924_844_032)
    for role in ('params', 'masks', 'optimizer'):
      self.assertLess(found['state'][role]['ratio'], 1.05)
      even = found['state'][role]['total'] / found['devices']
      self.assertLess(found['state'][role]['a_device'], 1.05 * even)
    self.assertLess(found['programs']['step']['memory_total_bytes'], 6 * 2**30)


if __name__ == '__main__':
  absltest.main()
